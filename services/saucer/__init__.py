"""Saucer: self-hosted AutoML for object detection, as services over gRPC and NATS."""
