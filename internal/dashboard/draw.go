package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Measures of the picture, in pixels.
const (
	column   = 50 // A dashboard has 24.
	row      = 32
	headline = 40
	gap      = 6
	// The plot of a panel is this far from its edges. Below it is the legend, whose lines have a height.
	left, top, right, bottom = 50, 28, 10, 20
	legendLine               = 14
	legendRows               = 5   // What has no room is not in the legend.
	letter                   = 6.1 // The width of one, on average.
	ticks                    = 4
)

// colours are those of lines, in their order; they differ for people who see colours otherwise, too.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6a3d9a", "#8c564b", "#7f7f7f", "#17becf", "#bcbd22", "#444444"}

// points is how many a line of the panel has room for.
func (p *panel) points() int { return max(p.GridPos.W*column-left-right, 1) }

// A picture is SVG.
type picture struct{ bytes.Buffer }

func (p *picture) add(format string, args ...any) { _, _ = fmt.Fprintf(p, format+"\n", args...) }

// text writes a text at a place. Its class says how it looks.
func (p *picture) text(x, y float64, class, text string) {
	p.add(`<text x="%s" y="%s" class="%s">%s</text>`, number(x), number(y), class, escape(text))
}

// escape makes a text one of XML.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // A Builder takes everything.
	return b.String()
}

// number writes a measure as short as it can be.
func number(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

// draw returns the picture of the dashboard, from one time to another.
func (d *dashboard) draw(from, to time.Time) []byte {
	height := 0
	for _, p := range d.Panels {
		height = max(height, p.GridPos.Y+p.GridPos.H)
	}
	var out picture
	out.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" font-family="sans-serif">`, 24*column, headline+height*row)
	out.add(`<style>.board{font-size:18px;font-weight:600}.row{font-size:14px;font-weight:600}.title{font-size:12px;font-weight:600}.tick,.legend{font-size:10px}.tick{fill:#666}.left{text-anchor:end}.middle{text-anchor:middle}.none{font-size:13px;fill:#a00;text-anchor:middle}.panel{fill:#fff;stroke:#ddd}.grid{stroke:#eee}.line{fill:none;stroke-width:1.3;stroke-linejoin:round}</style>`)
	out.add(`<rect width="100%%" height="100%%" fill="#f4f5f5"/>`)
	out.text(gap, 26, "board", fmt.Sprintf("%s, %s to %s UTC", d.Title, from.UTC().Format("15:04"), to.UTC().Format("15:04")))
	for _, p := range d.Panels {
		x, y := float64(p.GridPos.X*column), float64(headline+p.GridPos.Y*row)
		w, h := float64(p.GridPos.W*column), float64(p.GridPos.H*row)
		if p.Type == "row" {
			out.text(x+gap, y+h-8, "row", p.Title)
			continue
		}
		p.draw(&out, x+gap/2, y+gap/2, w-gap, h-gap, from, to)
	}
	out.add("</svg>")
	return out.Bytes()
}

// draw draws a panel in a rectangle.
func (p *panel) draw(out *picture, x, y, w, h float64, from, to time.Time) {
	out.add(`<rect x="%s" y="%s" width="%s" height="%s" rx="2" class="panel"/>`, number(x), number(y), number(w), number(h))
	out.text(x+8, y+17, "title", p.Title)
	legend, rows := p.legend(w)
	plot := h - top - bottom - float64(rows*legendLine)
	if len(p.lines) == 0 {
		out.text(x+w/2, y+h/2, "none", "no data")
		return
	}
	most := 0.0
	for _, l := range p.lines {
		for _, at := range l.points {
			most = max(most, at.value)
		}
	}
	step := tick(most)
	if p.FieldConfig.Defaults.Unit == "bytes" {
		scale := math.Pow(1024, math.Floor(math.Log2(max(most, 1))/10))
		step = tick(most/scale) * scale
	}
	high := step * max(math.Ceil(most/step), 1)
	across := func(at time.Time) float64 {
		return x + left + (w-left-right)*at.Sub(from).Seconds()/to.Sub(from).Seconds()
	}
	down := func(value float64) float64 { return y + top + plot*(1-value/high) }
	for i := 0; float64(i)*step <= high*1.0001; i++ {
		value := float64(i) * step
		out.add(`<path d="M%s %sH%s" class="grid"/>`, number(x+left), number(down(value)), number(x+w-right))
		out.text(x+left-4, down(value)+3, "tick left", unit(value, p.FieldConfig.Defaults.Unit))
	}
	for i := 1; i < ticks+1; i++ {
		at := from.Add(to.Sub(from) * time.Duration(i) / (ticks + 1))
		out.text(across(at), y+top+plot+13, "tick middle", at.UTC().Format("15:04:05"))
	}
	for i, l := range p.lines {
		colour := colours[i%len(colours)]
		out.add(`<path d="%s" class="line" stroke="%s"/>`, l.path(across, down), colour)
		if i >= len(legend) {
			continue
		}
		at := legend[i]
		out.add(`<path d="M%s %sh10" stroke="%s" stroke-width="3"/>`, number(x+at[0]), number(y+top+plot+bottom+at[1]+6), colour)
		out.text(x+at[0]+14, y+top+plot+bottom+at[1]+10, "legend", l.name)
	}
}

// legend returns the places of the first names below the plot, and how many lines they take.
func (p *panel) legend(w float64) (places [][2]float64, rows int) {
	x := 8.0
	for i, l := range p.lines {
		size := 24 + letter*float64(len([]rune(l.name)))
		if i > 0 && x+size > w {
			if x, rows = 8, rows+1; rows == legendRows {
				return places, rows
			}
		}
		places = append(places, [2]float64{x, float64(rows * legendLine)})
		x += size
	}
	return places, rows + 1
}

// path draws a line, which ends where values are missing.
func (l line) path(across func(time.Time) float64, down func(float64) float64) string {
	spacing := time.Duration(math.MaxInt64)
	for i := 1; i < len(l.points); i++ {
		spacing = min(spacing, l.points[i].at.Sub(l.points[i-1].at))
	}
	var b strings.Builder
	for i, at := range l.points {
		command := "L"
		if i == 0 || at.at.Sub(l.points[i-1].at) > spacing {
			command = "M"
		}
		_, _ = fmt.Fprintf(&b, "%s%s %s", command, number(across(at.at)), number(down(at.value)))
	}
	return b.String()
}

// tick returns the distance of ticks up to a value: 1, 2 or 5 times a power of ten.
func tick(most float64) float64 {
	if most <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(most/ticks)))
	for _, factor := range []float64{1, 2, 5} {
		if most <= factor*power*ticks {
			return factor * power
		}
	}
	return 10 * power
}

// unit writes a value as Grafana's unit of a name has it.
func unit(value float64, of string) string {
	short := func(value float64) string { return strconv.FormatFloat(value, 'g', 4, 64) }
	scaled := func(value, base float64, units ...string) string {
		i := 0
		for ; i < len(units)-1 && value >= base; i++ {
			value /= base
		}
		return strings.TrimSpace(short(value) + " " + units[i])
	}
	switch {
	case value == 0:
		return "0"
	case of == "s" && value < 0.001:
		return short(value*1e6) + " µs"
	case of == "s" && value < 1:
		return short(value*1e3) + " ms"
	case of == "s" && value < 60:
		return short(value) + " s"
	case of == "s":
		return short(value/60) + " min"
	case of == "bytes":
		return scaled(value, 1024, "B", "KiB", "MiB", "GiB")
	case of == "reqps", of == "ops":
		return short(value) + "/s"
	}
	return scaled(value, 1000, "", "K", "M", "G")
}
