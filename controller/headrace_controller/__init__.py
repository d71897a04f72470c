"""The controller of a job: the Ray actor that starts, watches and restarts the job's workers.

manager            the gateway's side: keeps one named Ray actor per job (actors) running
job_controller     the life of a job: start, run, pause, resume, end; ports: the parts it is built from
status_changes     changes of a job's status, which its user may change as well
workers            the workers of a job, each under a supervisor, from their start to the last evaluation
placement          reserves nodes, cores and GPUs; starts the worker processes there (worker_process)
watchdog           detects a job without progress, and which worker blocks the others (wait_graph)
pause_reasons, failure_limits
                   why a job pauses or fails without a request of the user
"""
