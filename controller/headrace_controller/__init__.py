"""The controller of a job: the Ray actor that starts its workers, watches and restarts them.

manager            the gateway's side: one named actor a job (actors), started again where it is missing
job_controller     a job's life: start, run, pause, resume, end; ports: what it is made of
workers            a job's workers, each supervised, and their work from the start to the last evaluation
placement          which node, which cores and GPUs; a worker there is one or several worker_process
watchdog           a worker that stands still, found by what waits for what (wait_graph)
pause_reasons, failure_limits
                   why a job pauses or ends by itself
"""
