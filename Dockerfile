# One image for every service: Flower, CPU torch and the app; docker-compose.yml names each service's command.
FROM python:3.11-slim

ENV FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.25 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

WORKDIR /app
# What changes least comes first, so that a change of the code rebuilds only the last layers.
# torch alone: PyPI's build for Linux brings gigabytes of CUDA along, PyTorch's own index has one without.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep ^torch== constraints.txt)"
COPY pyproject.toml ./
RUN python -c "import tomllib; t = tomllib.load(open('pyproject.toml', 'rb')); p = t['project']; \
print(*t['build-system']['requires'], *p['dependencies'], *p['optional-dependencies']['sample'], sep='\n')" \
    > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY settings settings
COPY weights weights
COPY tasks tasks
COPY client client
COPY server server
COPY simulation simulation
COPY deploy deploy
# Installed besides, for the checkpoint in weights/: Flower's bundle of the app carries text files only.
RUN pip install --no-deps --no-build-isolation .

# Flower refuses to bundle an app where a pattern of fab-exclude matches nothing; these folders stay outside.
RUN mkdir tests benchmarks docs && touch tests/none.py benchmarks/none.py docs/none.py

# The user is made last, so that another FEDFERRY_UID (who owns mounted folders and keys) rebuilds nothing else.
ARG UID=1000
RUN useradd --create-home --uid "$UID" fedferry \
 && mkdir /data /weights /results /state /verdict \
 && chown fedferry:fedferry /results /state /verdict
USER fedferry
ENV FLWR_HOME=/home/fedferry/.flwr
