"""User code, held: in processes of its own, as tightly as the machine can.

    service                guard                         host
    ───────                ─────                         ────
    reward ─► supervisor   starts it, watches over it,   contained before it reads a line of the user's
       └► processes ═════► and ends all of it     ═════► loads the function, answers calls
              frames, see `wire`

    reward      scores with so many hosts side by side
    supervisor  restarts a host, and finds the sample that broke it
    processes   one guard and its host, seen from the service
    guard       the process between: dies with the service, and takes everything below with it
    host        the user's function; `loading` imports it
    connections unix sockets between processes of one host; `usage` what they use together, `buffers` a part of it;
                `removal` what they leave
    semaphores  those of `multiprocessing`, where they have no place of their own
    contained   a piece of work of our own, held in the same way
    containment what holds the host; `view` which files it may read; `limits` how much it may use
    control_groups
                groups of processes whose memory the kernel holds, where the service has them
    kernel, seccomp, landlock, namespaces
                the calls that this takes, made directly: nothing has to be installed
    machine     which level this machine really holds, by trying

This file imports nothing, so that a host process starts fast.
"""
