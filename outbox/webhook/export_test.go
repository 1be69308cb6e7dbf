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

// RefreshEvery is how long a change of a subscription may go unnoticed.
const RefreshEvery = refreshEvery
