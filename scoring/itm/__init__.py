"""Whether a caption fits a picture, asked of an image-text-to-text model."""
