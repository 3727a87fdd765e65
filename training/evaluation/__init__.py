"""What a trained model is worth: its loss on samples that it was not trained on."""
