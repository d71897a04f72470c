"""User code, held: in processes of its own, as tightly as the machine can.

    service                                guard                         host
    ───────                                ─────                         ────
    hosted_reward ─► host_supervisor       starts it, watches over it,   contained before it reads a line of the user's
              └► host_process ═══════════► and ends all of it     ═════► loads the function, answers calls
                       frames, see `frames`

    hosted_reward    scores with so many hosts side by side
    host_supervisor  restarts a host, and finds the sample that broke it
    host_process     one guard and its host, seen from the service
    guard            the process between: dies with the service, and takes everything below with it
    host             the user's function; `code_loading` imports it, from what `kept_sources` holds
    contained        a piece of work of our own, held in the same way
    level_probe      which level this machine really holds, by trying
    removal          removes what processes leave
    kernel           what holds the host: files, limits, system calls, memory; nothing has to be installed

This file imports nothing, so that a host process starts fast.
"""
