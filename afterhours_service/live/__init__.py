"""The live gateway: delivers members' events to their phones, over Socket.IO (docs/live.md)."""
