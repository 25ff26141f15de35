"""The tests of a module are in the folder of the same name: `tests/sessions` tests `afterhours_service/sessions`.

Test modules share code through these helpers, and never import one another:

- conftest: the fixtures: servers, a database for each test, `app`, `client`, `factory`, `events`, `own_valkey`, `wire`
- factories: rows of members and sessions; time travel
- client: a member's requests over Flask's test client (`start`, `extend`, `end`, `status`, `decline`, `upload` …)
- processes: the environment of a process, and the service's processes as the Procfile starts them
- stopwatch: `eventually`, and times that a busy machine does not distort
- outages: a Valkey to be stopped; wire: a proxy that counts round trips to the database
- host: the host's schema, and the Node service's data; pictures, keys: photos to upload, key pairs for tokens
"""
