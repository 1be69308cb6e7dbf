package lifecycle

import "time"

// LimitTimes replaces BacktestTime and SimulationTime.
func (s *Service) LimitTimes(backtest, simulation time.Duration) {
	s.backtestTime, s.simulationTime = backtest, simulation
}
