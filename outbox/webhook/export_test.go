package webhook

// The results of settling.
const (
	ResultDelivered = resultDelivered
	ResultRetry     = resultRetry
	ResultDead      = resultDead
	ResultGone      = resultGone
	ResultPostponed = resultPostponed
	ResultAbandoned = resultAbandoned
)
