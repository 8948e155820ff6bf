"""What the four ops share, face by face."""
