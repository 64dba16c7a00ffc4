"""JPEGs that are decoded, cropped and resized on an NVIDIA GPU, into the input of an engine."""
