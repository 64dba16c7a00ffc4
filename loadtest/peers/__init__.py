"""What people would pick instead of convserve, each written as its own documentation would, and what frames them."""
