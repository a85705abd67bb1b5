module hearth/test/vm

go 1.26.0
