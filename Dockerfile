# mgpo with CUDA, for training, evaluating and serving on NVIDIA GPUs.
#
#   docker build -t mgpo .
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" -v mgpo-models:/models mgpo train --config recipes/tiny_mgpo.yaml
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" -v mgpo-models:/models -p 127.0.0.1:8000:8000 \
#     -e MGPO_API_KEY=... mgpo serve --model runs/mine --host 0.0.0.0
#
# torch 2.13 is built for CUDA 13.0 and brings its own CUDA libraries, so the base image needs none. The host needs a driver of
# version 580 or newer, and the NVIDIA container toolkit. vLLM is not in the image: see docs/vllm.md.
#
# This file is checked by hadolint and by tests/test_packaging.py. The image itself has not been built by the project.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# A C compiler and Python's headers are what Triton needs to compile kernels. Ubuntu removes old versions of packages from its
# mirrors, so pinning them would break the build; the release of Ubuntu is pinned above.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /models /work \
    && chown 1000:1000 /models /work

ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# torch first: it is most of the image, and stays in Docker's cache while the package changes.
WORKDIR /opt/mgpo
COPY constraints.txt ./
RUN python3.12 -m venv /opt/venv \
    && pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cu130

# Extras of pyproject.toml; add qlora for training in 4 bits.
ARG EXTRAS=serve,endpoint,fast-images
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install -c constraints.txt ".[${EXTRAS}]"

# Not root: what is written to a mounted folder belongs to the usual first user of a machine. `--user "$(id -u)"` changes it.
USER 1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["mgpo"]
CMD ["--help"]
