# SPDX-License-Identifier: Apache-2.0
# The image contains one static program, the driver, and nothing else that can be executed.

ARG GO_VERSION=1.26
FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build
ARG TARGETOS TARGETARCH VERSION=devel
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY Makefile ./
COPY cmd cmd
COPY internal internal
COPY pkg pkg
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH make BIN= VERSION=$VERSION /fsuser-csi

FROM scratch
ARG VERSION=devel
LABEL org.opencontainers.image.title="fsuser-csi" \
      org.opencontainers.image.description="Secrets and ConfigMaps as files of the user who needs them: a CSI node driver for Kubernetes" \
      org.opencontainers.image.source="https://github.com/fsuser-csi/fsuser-csi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /fsuser-csi /fsuser-csi
ENTRYPOINT ["/fsuser-csi"]
CMD ["node"]
