"""Everything that runs on RQ: queues, timers, worker, scheduler; also the events, and the record of periodic runs."""
