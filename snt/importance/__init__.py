"""Importance of a neuron: the L2 change of its block's output when it is removed (pure maths)."""
