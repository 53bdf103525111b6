"""Finding and comparing circuits: ablation, pairing, neuron masks."""
