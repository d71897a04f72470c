"""The controller of a job: the Ray actor that starts its workers, watches and restarts them.

manager            the gateway's side: one named actor a job, started again where it is missing
job_controller     a job's life: start, run, pause, resume, end
worker_group       a job's workers; each under a worker_supervisor, as one or several worker_process
placement          which node, which cores and GPUs
watchdog           a worker that stands still, found by what waits for what (wait_graph, liveness)
pause_reasons, failure_limits
                   why a job pauses or ends by itself
"""
