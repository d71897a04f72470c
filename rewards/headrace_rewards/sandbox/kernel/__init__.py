"""What the kernel enforces on user code, by calls made directly.

    containment      the containment of a host, all layers together
    readable_paths   which files it may read: `namespaces`, `landlock`
    resource_limits  how much it may use; `control_groups` where the service has some
    seccomp          which system calls it may make; `syscalls` makes our own
    usage            what its processes use together; `connections` between them, and their `buffers`
    semaphores       for `multiprocessing`, if `/dev/shm` is closed

This file imports nothing, so that a host process starts fast.
"""
