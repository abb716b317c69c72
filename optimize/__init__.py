"""The compression side: stages that turn a trained network into smaller and faster files for a device."""
