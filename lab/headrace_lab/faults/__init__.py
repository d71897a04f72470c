"""What goes wrong, on purpose: damaged bytes, answers that are held back, small disks."""
