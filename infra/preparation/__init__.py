"""What a person makes before a deployment."""
