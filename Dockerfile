FROM golang:1.26 AS build
WORKDIR /src
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /pawl ./cmd/pawl

# The binary is static; all it asks of its system are the certificate
# authorities, for webhooks over HTTPS.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /pawl /pawl
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/pawl"]
CMD ["serve"]
