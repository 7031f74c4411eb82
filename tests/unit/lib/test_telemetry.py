"""What a process answers on its metrics port."""

import httpx

from saucer.lib.grpc_server import serving
from saucer.lib.telemetry import serve_metrics


def test_serving_is_told_to_probes_beside_the_metrics() -> None:
    port = serve_metrics("127.0.0.1:0")
    codes = {}
    for value in (0, 1):
        serving.set(value)
        codes[value] = httpx.get(f"http://127.0.0.1:{port}/serving").status_code
    assert codes == {0: 503, 1: 200}
    assert "saucer_serving 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
