"""What the kernel enforces on user code: namespaces, Landlock, seccomp, limits, accounting."""
