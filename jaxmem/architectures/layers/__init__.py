"""Linear maps, norms, MLPs, experts, embeddings of images and sounds, heads."""
