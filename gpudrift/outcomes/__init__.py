"""Product metrics beside the drift: when drift spikes, which of them degrade? Associations, never causes."""
