"""What every job needs: queues, timers, the worker, the scheduler, events and the record of runs."""
