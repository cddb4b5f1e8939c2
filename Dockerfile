# Two images: `cpu`, the default, with the demo model inside, and `vllm`, on vLLM's own CUDA image.
#
#   docker build --tag simpleseg-server:cpu .
#   docker build --tag simpleseg-server:vllm --target vllm .
#   docker build --target sbom --output . .         # writes sbom.cdx.json
#
# Both run without root and on a read-only root file system with a tmpfs on /tmp. What is installed
# is pinned, with hashes, in deploy/requirements (`make lock`).

ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.33.0


# What builds: a wheel of this project, and the bill of materials.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY deploy/requirements/build.txt deploy/requirements/build.txt
RUN pip install --no-cache-dir --require-hashes --requirement deploy/requirements/build.txt
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .


# What the server needs. torch comes by exact version from an index of CPU builds, since the usual one
# brings gigabytes of CUDA along; its hash depends on the index.
FROM ${PYTHON_IMAGE} AS packages
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/requirements/cpu.txt /cpu.txt
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
        --index-url "${TORCH_INDEX}" "torch==${TORCH_VERSION}"
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes \
        --requirement /cpu.txt \
    && pip --python /opt/venv/bin/python check
# Headers and CMake files, for who compiles against torch.
RUN rm -rf /opt/venv/lib/python3.11/site-packages/torch/include \
        /opt/venv/lib/python3.11/site-packages/torch/share


# This project alone, laid out to be copied over /opt/venv: a layer that is small, and the only one
# that changes with the code.
FROM packages AS project
COPY --from=wheel /dist /dist
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --prefix /opt/project \
        /dist/*.whl


FROM wheel AS bill
COPY --from=packages /opt/venv /opt/venv
COPY --from=project /opt/project /opt/venv
RUN cyclonedx-py environment --output-reproducible --output-format JSON \
        --output-file /sbom.cdx.json /opt/venv


FROM scratch AS sbom
COPY --from=bill /sbom.cdx.json /


FROM ${VLLM_IMAGE} AS vllm
LABEL org.opencontainers.image.title="simpleseg-server, vLLM" \
      org.opencontainers.image.licenses="Apache-2.0"
# Only what the image lacks: what vLLM asks for stays as vLLM's own image has it.
RUN --mount=type=bind,source=deploy/requirements/vllm.txt,target=/vllm.txt \
    python3 -m pip install --no-cache-dir --no-deps --require-hashes --requirement /vllm.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m pip install --no-cache-dir --no-deps /dist/*.whl \
    && simpleseg serve --engine vllm --check-config
RUN groupadd --gid 10001 simpleseg \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp simpleseg
ENV HF_HOME=/models \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SIMPLESEG_HOST=0.0.0.0 \
    SIMPLESEG_OPS_HOST=0.0.0.0 \
    SIMPLESEG_OPS_PORT=9090
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 9090
# vLLM compiles, and reads weights, for minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python3", "-S", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/readyz', timeout=4)"]
ENTRYPOINT ["simpleseg"]
CMD ["serve", "--engine", "vllm", "--model", "sthui/SimpleSeg-Qwen2.5-VL", "--dtype", "bfloat16"]


FROM ${PYTHON_IMAGE} AS cpu
LABEL org.opencontainers.image.title="simpleseg-server" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 simpleseg \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp simpleseg
COPY --from=packages /opt/venv /opt/venv
COPY --from=project /opt/project /opt/venv
COPY --from=bill /sbom.cdx.json /usr/share/doc/simpleseg-server/sbom.cdx.json
ENV HOME=/tmp \
    PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SIMPLESEG_HOST=0.0.0.0 \
    SIMPLESEG_OPS_HOST=0.0.0.0 \
    SIMPLESEG_OPS_PORT=9090
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "-S", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9090/readyz', timeout=4)"]
ENTRYPOINT ["simpleseg"]
CMD ["serve", "--engine", "embedded"]
