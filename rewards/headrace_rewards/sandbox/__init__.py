"""The sandbox: runs user code in processes of its own, confined as strictly as the machine allows.

    service                                guard                         host
    ───────                                ─────                         ────
    hosted_reward ─► host_supervisor       starts it, monitors it,       confined before it reads any user code,
              └► host_process ═══════════► and ends all of it     ═════► loads the function, answers calls
                       frames, see `frames`

    hosted_reward    a reward that scores with several hosts side by side
    host_supervisor  restarts a host, and finds the sample that broke it
    host_process     the service's handle on one guard and its host
    guard            the process between the two: ends with the service, and ends every process below it
    host             runs the user's function; `code_loading` imports it, from files that `kept_sources` holds
    contained        runs a task of Headrace's own in the same sandbox
    level_probe      finds the sandbox level that this machine supports, by trying to break out
    removal          removes the files that processes leave
    kernel           confinement by the kernel: files, limits, system calls, memory; nothing has to be installed

This file imports nothing, so that a host process starts fast.
"""
