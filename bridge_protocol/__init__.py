"""What is said: frames, messages, envelope, topology and errors. Shared by every part, and pure."""
