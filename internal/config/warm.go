package config

import (
	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

func warmOf(w v1alpha1.Warm) env.WarmPolicy {
	return env.WarmPolicy{
		Slots: int(w.Slots), Created: int(w.Created), MaxAge: duration(w.MaxAge), Wait: duration(w.Wait),
		CheckEvery: duration(w.CheckEvery), RollEvery: duration(w.RollEvery), Deflate: w.Deflate,
	}
}
