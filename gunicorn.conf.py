"""Settings of the API's server, read where `gunicorn` is started; its command line and GUNICORN_CMD_ARGS prevail."""

graceful_timeout = 8  # seconds that a request in flight has left when the server is to stop
control_socket_disable = True  # it would be one file in the user's home for every server there
