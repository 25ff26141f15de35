"""Settings of the API's server, read where `gunicorn` is started; its command line and GUNICORN_CMD_ARGS prevail."""

import gunicorn.http.wsgi

graceful_timeout = 8  # seconds that a request in flight has left when the server is to stop
control_socket_disable = True  # it would be one file in the user's home for every server there
timeout = 30  # seconds until a worker that is stuck in a request is ended, and another one started
limit_request_line = 4094  # bytes, as for the two below: a longer one is refused
limit_request_fields = 50
limit_request_field_size = 8190  # a token is the longest header; RS256 ones take about 1 KB
gunicorn.http.wsgi.SERVER = (
    "after-hours"  # of the `Server` header: whose program, and what version, is nobody's concern
)
