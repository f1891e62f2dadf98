"""What management does: each room one noun. Doors call it, it calls the store and reads the gateway's snapshot."""
