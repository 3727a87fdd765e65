"""What a sample is: records, Arrow schemas, names on disk, the manifest and the errors."""
