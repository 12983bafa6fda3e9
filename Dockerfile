# docker build -t espalier .
# docker run --rm -it -v "$PWD:/work" espalier            # the default study, results in the folder
# docker run --rm -it -p 5000:5000 -v "$PWD:/work" espalier ui --host 0.0.0.0 --no-browser
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory '*'
COPY requirements.lock /tmp/requirements.lock
RUN python -m pip install --no-cache-dir -r /tmp/requirements.lock
ENV PYTHONPATH=/work MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=true
WORKDIR /work
ENTRYPOINT ["python", "-m", "pipeline.cli"]
CMD ["run"]
