"""Mutual TLS: who a process is, and whose certificates it believes, the same for gRPC, NATS and PostgreSQL.

Files are read when something is opened: a renewed certificate is used by new channels and connections, and by a server
after its restart.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, and the authority that signed it and all the others. PEM files."""

    ca_file: Path
    certificate_file: Path
    key_file: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server that refuses whoever has no certificate of the authority."""
        pair = (self.key_file.read_bytes(), self.certificate_file.read_bytes())
        return grpc.ssl_server_credentials([pair], self.ca_file.read_bytes(), require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a gRPC client."""
        return grpc.ssl_channel_credentials(
            self.ca_file.read_bytes(), self.key_file.read_bytes(), self.certificate_file.read_bytes()
        )

    def client_context(self) -> ssl.SSLContext:
        """For NATS and PostgreSQL; checks the server's name too. Raises OSError for files that cannot be read."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context
