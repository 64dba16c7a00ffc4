"""What was found about engines on this machine."""
