# A node of meshnode in a container; docs/containers.md says how to run it.
#
#   docker build -t meshnode:0.1.0 .
#   docker build -t meshnode:0.1.0-torch --build-arg EXTRAS=torch,grpc .
#   docker build -t meshnode:0.1.0-cuda --build-arg ONNXRUNTIME=onnxruntime-gpu .
#
# Without arguments nothing of CUDA is installed; PyTorch, where EXTRAS asks for it, is the build for processors unless
# TORCH_INDEX names another one, such as https://download.pytorch.org/whl/cu126.
ARG BASE=python:3.12-slim

FROM $BASE AS build
ARG EXTRAS=""
ARG ONNXRUNTIME=""
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway gateway
COPY routing routing
COPY models models
COPY sim sim
COPY examples examples
COPY meshnode meshnode
RUN python -m venv /opt/meshnode/venv \
    && case ",$EXTRAS," in *,torch,*) set -- --extra-index-url "$TORCH_INDEX" ;; *) set -- ;; esac \
    && /opt/meshnode/venv/bin/pip install --no-cache-dir --constraint constraints.txt "$@" "/src${EXTRAS:+[$EXTRAS]}" \
    && if [ -n "$ONNXRUNTIME" ]; then \
         /opt/meshnode/venv/bin/pip uninstall --yes onnxruntime \
         && /opt/meshnode/venv/bin/pip install --no-cache-dir "$ONNXRUNTIME"; \
       fi \
    && /opt/meshnode/venv/bin/python -m compileall -q /opt/meshnode/venv

FROM $BASE
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
RUN groupadd --gid 10001 meshnode \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/meshnode --no-create-home --shell /usr/sbin/nologin meshnode \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/meshnode
COPY --from=build /opt/meshnode/venv /opt/meshnode/venv
# The gateway is for the container's network: from there callers need a key (`meshnode keys create`).
ENV PATH=/opt/meshnode/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MESHNODE_DATA_DIR=/var/lib/meshnode \
    MESHNODE_HTTP=0.0.0.0:8470
USER 10001:10001
WORKDIR /var/lib/meshnode
# The node's key, its mesh and its models: a node that loses them is another node.
VOLUME /var/lib/meshnode
EXPOSE 8470/tcp 8471/tcp 8471/udp 8472/tcp
# SIGTERM lets the node finish what runs (30 s at most) and tell the others: run with --stop-timeout 60.
STOPSIGNAL SIGTERM
# Over the control channel: it works too where the gateway wants a key of everybody, has TLS, or is off.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "meshnode.client.probe", "healthz"]
ENTRYPOINT ["meshnode"]
CMD ["join"]
