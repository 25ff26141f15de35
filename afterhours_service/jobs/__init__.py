"""All that runs on RQ: queues, timers, the worker, the scheduler; events, and the record of periodic runs."""
