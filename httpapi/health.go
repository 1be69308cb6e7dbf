package httpapi

import (
	"bytes"
	"context"
)

// GetHealth says that the process serves, whatever the database does.
func (s *server) GetHealth(context.Context, GetHealthRequestObject) (GetHealthResponseObject, error) {
	return GetHealth200JSONResponse{Status: HealthStatusOk}, nil
}

// GetReadiness says whether requests can be served now.
func (s *server) GetReadiness(ctx context.Context, _ GetReadinessRequestObject) (GetReadinessResponseObject, error) {
	if err := s.service.Ping(ctx); err != nil {
		return nil, err
	}
	return GetReadiness200JSONResponse{Status: ReadinessStatusReady}, nil
}

// GetContract serves openapi.yaml.
func (s *server) GetContract(context.Context, GetContractRequestObject) (GetContractResponseObject, error) {
	return GetContract200ApplicationYamlResponse{
		Body: bytes.NewReader(openapiYAML), ContentLength: int64(len(openapiYAML)),
	}, nil
}

// GetProblem explains a problem's code.
func (s *server) GetProblem(_ context.Context, r GetProblemRequestObject) (GetProblemResponseObject, error) {
	code := ProblemCode(r.Code)
	kind, known := problemKinds[code]
	if !known {
		return nil, &problemError{code: ProblemCodeNotFound, detail: "there is no problem of this code"}
	}
	return GetProblem200JSONResponse{
		Code: code, Title: kind.title, Status: kind.status, Description: kind.description,
	}, nil
}
