"""The architectures of the lecture, and what each costs to compute."""
