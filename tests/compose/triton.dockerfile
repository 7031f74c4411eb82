# Stands in for NVIDIA's image: pip's older Triton, whose only backend is Python's.
FROM python:3.11-slim-bookworm
RUN pip install --no-deps nvidia-pytriton
COPY tritonserver /usr/local/bin/tritonserver
RUN packages=/usr/local/lib/python3.11/dist-packages && server=$packages/pytriton/tritonserver \
    && install -d /opt/backends && cp -r $server/backends/python /opt/backends/python \
    && install -m 755 $server/python_backend_stubs/3.11/triton_python_backend_stub /opt/backends/python/ \
    && chmod a+x $server/bin/tritonserver /usr/local/bin/tritonserver
