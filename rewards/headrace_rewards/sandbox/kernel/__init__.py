"""What the kernel enforces on user code, by calls made directly.

    containment      what holds a host, all of it together
    readable_paths   which files it may read: `namespaces`, `landlock`
    resource_limits  how much it may use; `control_groups` where the service has some
    seccomp          which calls it may make; `syscalls` makes ours
    usage            what its processes use together: `connections` between them, `buffers` of those
    semaphores       those of `multiprocessing`, where they have no place of their own

This file imports nothing, so that a host process starts fast.
"""
