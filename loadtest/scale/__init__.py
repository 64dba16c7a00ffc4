"""How far the server goes: replicas reckoned from measured costs, and its scheduler simulated on many devices."""
