# docker build -t rest_jax .                                  (CPU)
# docker build -t rest_jax --build-arg ACCELERATOR=cuda .     (CUDA; run with --gpus all)
# docker run --rm -v "$PWD:/data" rest_jax train --config finetune_folder --config.data.name=photos
FROM python:3.11-slim
ARG ACCELERATOR=
WORKDIR /opt/rest_jax
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY rest_jax rest_jax
RUN pip install --no-cache-dir --constraint constraints.txt ".${ACCELERATOR:+[$ACCELERATOR]}" \
  && rest-jax --version
# What the commands write goes to the folder that is mounted here.
WORKDIR /data
ENTRYPOINT ["rest-jax"]
CMD ["--help"]
