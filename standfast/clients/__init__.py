"""The clients' room: a mount follows the volume from server to server."""
